"""One file per family of timm models; these are the only modules of the core that import timm."""
