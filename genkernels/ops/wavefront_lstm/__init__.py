"""The LSTM that walks an image front by front: see :func:`genkernels.ops.row_lstm` and ``diagonal_bilstm``."""
