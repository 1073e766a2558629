"""Convolution to the gates and walk as one operator: see :func:`genkernels.ops.row_lstm_layer` and its neighbours."""
