from xml.etree.ElementTree import ParseError, tostring

import pytest
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import parse

from detector.data.formats.safe_xml import parse_xml
from detector.errors import InputError

HARMLESS = [
    "<a/>",
    "<a b='1'>one<c>two</c>three &lt; &#65;<!-- no --><d/></a>",
    "<!DOCTYPE a SYSTEM 'nowhere.dtd'><a>text</a>",
    "<?xml version='1.0' encoding='iso-8859-1'?><a>\xe4</a>",
    "<?xml version='1.0' encoding='cp1252'?><a>\x80</a>",
]
LAUGHS = '<!DOCTYPE a [<!ENTITY x "ha"><!ENTITY y "&x;&x;&x;">]><a>&y;</a>'
REFUSED = [
    LAUGHS,
    '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><a>&x;</a>',
    '<!DOCTYPE a [<!ENTITY % x SYSTEM "http://nowhere/x">%x;]><a/>',
    '<!DOCTYPE a SYSTEM "nowhere.dtd"><a>&x;</a>',
    "<a>&x;</a>",
    "<a>",
    "<a/><a/>",
    "",
    "<?xml version='1.0' encoding='utf-8'?><a>\xe4</a>",
    "<?xml version='1.0' encoding='nowhere'?><a/>",
]


@pytest.mark.parametrize("text", HARMLESS)
def test_the_tree_is_that_of_defusedxml(tmp_path, text):
    (tmp_path / "a.xml").write_bytes(text.encode("latin-1"))
    assert tostring(parse_xml(tmp_path / "a.xml", 1000)) == tostring(parse(tmp_path / "a.xml").getroot())


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_encodings_are_seen_through(tmp_path, encoding):
    (tmp_path / "a.xml").write_bytes("<a>ä</a>".encode(encoding))
    assert parse_xml(tmp_path / "a.xml", 1000).text == "ä"
    (tmp_path / "a.xml").write_bytes(LAUGHS.encode(encoding))
    with pytest.raises(InputError, match="EntitiesForbidden"):
        parse_xml(tmp_path / "a.xml", 1000)


@pytest.mark.parametrize("text", REFUSED)
def test_what_defusedxml_refuses_is_refused(tmp_path, text):
    (tmp_path / "a.xml").write_bytes(text.encode("latin-1"))
    with pytest.raises((ParseError, DefusedXmlException, LookupError, ValueError)):
        parse(tmp_path / "a.xml")
    with pytest.raises(InputError, match=r"a\.xml: broken XML: ."):
        parse_xml(tmp_path / "a.xml", 1000)
