"""Episodes: fixed lists, tensors, published protocols."""
