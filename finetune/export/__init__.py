"""Models as files for other programs: GGUF for llama.cpp, with a Modelfile for Ollama."""
