"""What images and sound share: modalities, transforms, limits, and decoded media. No torch."""
