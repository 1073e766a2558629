"""From the graph to the program."""
