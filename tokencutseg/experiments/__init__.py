"""The study room: what a study is made of, how its notebooks are run, and what they leave to be read."""
