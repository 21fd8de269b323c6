"""Data sets as resident uint8 tensors, their preprocessing and augmentation, and how they are split."""
