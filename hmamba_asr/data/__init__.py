"""Corpora, manifests, audio, text, tokenizers and loaders."""
