"""The form gguf: the whole model in the format of llama.cpp, converted by llama.cpp's own program."""
