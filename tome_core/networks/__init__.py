"""Networks that timm lacks, built from its parts."""
