"""Pure functions: tensors in, one number per item out."""
