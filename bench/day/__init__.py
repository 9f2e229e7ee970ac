"""The day a GPU is there: tests, times, configurations and whole answers, in one command and a few minutes."""
