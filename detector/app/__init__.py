"""How train.py and evaluate.py start: files of settings and the command line -> typed settings -> the program."""
