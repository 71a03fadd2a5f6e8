"""From settings to components, in the same way for train.py, evaluate.py and the Python interface."""
