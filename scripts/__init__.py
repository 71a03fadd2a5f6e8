"""Programs beside train.py and evaluate.py; run them as python scripts/NAME.py --help."""
