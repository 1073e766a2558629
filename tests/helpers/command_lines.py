"""A small run and the shape of an error message, for the tests of the command line."""

# A model that trains in no time.
SMALL = ["--hidden-channels", "4", "--num-layers", "1", "--batch-size", "100"]


def is_one_sentence(text: str) -> bool:
    return text.startswith("genkernels: ") and text.count("\n") == 1 and "Traceback" not in text
