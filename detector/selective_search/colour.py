"""Smoothing of an RGB image and conversion to the colour spaces of selective search.

All computations use integers (those in float32 stay below 2^24, where sums are exact), so planes are bitwise identical
on every machine: one step is 1/8 of a grey level, and a channel ranges from 0 to TOP = 255 * 8.
"""

import numpy as np

from detector.runtime.compiled import compiled

LEVEL = 8
TOP = 255 * LEVEL

# sRGB to linear light and the cube root of CIE Lab, as tables of 16-bit fractions. Every entry is far enough
# from a rounding boundary that all math libraries give the same value (a test measures the distance).
_code = np.arange(TOP + 1) / TOP
LINEAR_EXACT = np.where(_code <= 0.04045, _code / 12.92, ((_code + 0.055) / 1.055) ** 2.4) * 65535
_light = np.arange(2**14 + 1) / 2**14
LAB_F_EXACT = np.where(_light > 216 / 24389, np.cbrt(_light), _light * 841 / 108 + 4 / 29) * 65536
LINEAR = np.round(LINEAR_EXACT).astype(np.int32)
LAB_F = np.round(LAB_F_EXACT).astype(np.int32)


@compiled
def smooth(image: np.ndarray) -> np.ndarray:
    """Gaussian filter with sigma 0.8 pixels on (H, W, 3) uint8: (3, H, W) uint16 planes in 1/8 levels.

    The image is smoothed once for all colour spaces, before the conversions, so that hue is not averaged across its
    jump from 360 degrees to 0.
    """
    height, width, channels = image.shape
    planes = np.empty((channels, height, width), np.uint16)
    rows = np.empty((height, width), np.float32)
    padded = np.empty(width + 4, np.float32)
    far, near, middle = np.float32(6), np.float32(58), np.float32(128)  # of 256
    for channel in range(channels):
        for y in range(height):
            for x in range(width):
                padded[x + 2] = image[y, x, channel]
            padded[0] = padded[1] = padded[2]
            padded[width + 2] = padded[width + 3] = padded[width + 1]
            for x in range(width):
                rows[y, x] = (
                    far * (padded[x] + padded[x + 4]) + near * (padded[x + 1] + padded[x + 3]) + middle * padded[x + 2]
                )
        for y in range(height):
            above2, above, here = rows[max(y - 2, 0)], rows[max(y - 1, 0)], rows[y]
            below, below2 = rows[min(y + 1, height - 1)], rows[min(y + 2, height - 1)]
            for x in range(width):
                total = far * (above2[x] + below2[x]) + near * (above[x] + below[x]) + middle * here[x]
                planes[channel, y, x] = np.uint16(total * np.float32(LEVEL / 65536))
    return planes


@compiled
def rgb_to_hsv(rgb: np.ndarray) -> np.ndarray:
    """Hue (0 to 180 levels for the full circle), saturation and value; the hue of grey is 0."""
    hsv = np.empty(rgb.shape, np.uint16)
    signed = rgb.astype(np.int32)
    for y in range(rgb.shape[1]):
        for x in range(rgb.shape[2]):
            red, green, blue = signed[0, y, x], signed[1, y, x], signed[2, y, x]
            value = max(red, green, blue)
            chroma = value - min(red, green, blue)
            if chroma == 0:
                hue = 0
            elif value == red:
                hue = 30 * LEVEL * (green - blue) // chroma % (180 * LEVEL)
            elif value == green:
                hue = 60 * LEVEL + 30 * LEVEL * (blue - red) // chroma
            else:
                hue = 120 * LEVEL + 30 * LEVEL * (red - green) // chroma
            hsv[0, y, x] = hue
            hsv[1, y, x] = TOP * chroma // max(value, 1)
            hsv[2, y, x] = value
    return hsv


@compiled
def rgb_to_lab(rgb: np.ndarray, linear: np.ndarray, lab_f: np.ndarray) -> np.ndarray:
    """CIE Lab (white D65): L scaled to 0 to 255 levels, a and b shifted by 128."""
    lab = np.empty(rgb.shape, np.uint16)
    for y in range(rgb.shape[1]):
        for x in range(rgb.shape[2]):
            red, green, blue = linear[rgb[0, y, x]], linear[rgb[1, y, x]], linear[rgb[2, y, x]]
            # rows of the sRGB matrix divided by the white point, in 1/65536
            fx = lab_f[(28440 * red + 24656 * green + 12440 * blue) >> 18]
            fy = lab_f[(13933 * red + 46871 * green + 4732 * blue) >> 18]
            fz = lab_f[(1164 * red + 7175 * green + 57197 * blue) >> 18]
            lab[0, y, x] = max((116 * fy - 16 * 65536) * TOP // 100 >> 16, 0)  # black rounds to less
            lab[1, y, x] = (500 * LEVEL * (fx - fy) >> 16) + 128 * LEVEL
            lab[2, y, x] = (200 * LEVEL * (fy - fz) >> 16) + 128 * LEVEL
    return lab


def rgb_to_gray(rgb: np.ndarray) -> np.ndarray:
    """Luma of ITU-R 601."""
    weights = np.array([77, 150, 29], np.uint32)  # of 256
    return (np.tensordot(weights, rgb, 1) >> 8).astype(np.uint16)[None]


def rgb_to_rgi(rgb: np.ndarray) -> np.ndarray:
    """Red and green as shares of red + green + blue, and the intensity (their mean)."""
    red, green, blue = rgb.astype(np.uint32)
    total = red + green + blue
    share = np.maximum(total, 1)
    return np.stack([red * TOP // share, green * TOP // share, total // 3]).astype(np.uint16)


def to_space(rgb: np.ndarray, space: str) -> np.ndarray:
    """Convert smoothed planes (3, H, W) to "hsv", "lab", "gray", "hue" or "rgi": (C, H, W), C = 1 or 3."""
    if space == "lab":
        return rgb_to_lab(rgb, LINEAR, LAB_F)
    if space == "gray":
        return rgb_to_gray(rgb)
    if space == "rgi":
        return rgb_to_rgi(rgb)
    hsv = rgb_to_hsv(rgb)
    return hsv if space == "hsv" else hsv[:1]
