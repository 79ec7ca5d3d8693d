"""YAMLs: bases and variants composed, moved names kept working, parts built alone, differences named."""
