"""From the model to a graph.

tracer.py      runs the model on a tensor that records what is done with it
recording.py   the nodes so far, and where in the model it is
rearranging.py operators that move elements and compute nothing
places.py      where tensors have their channels and pixels
operator_table.py  the handlers of operators, by name
operators.py   the table of operators that compute: a new one is added here
functions.py   those of them that are elementary functions
conditions.py  comparisons, logic, choices
across.py      functions across the channels of a pixel
matrices.py    products with matrices
lookup.py      those that look levels up in a table
attention.py   causal attention
multihead.py   PyTorch's functions of attention
sequences.py   tensors [T, N, C]
tensor.py      the traced tensor, and memory that tensors share
view.py        elements of a traced tensor as shifted channels of nodes
graph.py       nodes, and how they read each other
"""
