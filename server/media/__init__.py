"""What images, sound and video share: modalities, transforms, limits, decoded media. No torch."""
