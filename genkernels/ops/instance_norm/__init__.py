"""Instance norm and activation: y = act(weight * (x - mean) / sqrt(variance + eps) + bias), by image and channel."""
