"""The embedded world: captions, a renderer and a small Stable Diffusion 3 pipeline to train."""
