"""Networks that timm lacks, built from its parts.

Sound: `SpectrogramViT` is AST; AudioMAE is timm's own ViT. Video: `VideoViT` is VideoMAE, MAE-ST
and ViViT, whose tokens all attend to each other. Their sizes are architectures of timm
(``audio_architectures``, ``video_architectures``).
"""
