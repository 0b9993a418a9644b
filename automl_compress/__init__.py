"""Search for the best smaller networks: pruning and quantization, evolution and RL side by side."""
