"""From the graph to the program.

fold.py       fewer nodes: scales, sums and activations join the convolution before them
schedule.py   when every channel of every node is computed; refuses models that are not causal
lower.py      nodes to instructions
"""
