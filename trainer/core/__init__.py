"""Values and machine: errors, settings, files, tensors, chance, clocks. No word of diffusion stands here."""
