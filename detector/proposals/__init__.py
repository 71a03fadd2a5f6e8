"""Object proposals from outside: files of them, how they are made, checked and converted."""
