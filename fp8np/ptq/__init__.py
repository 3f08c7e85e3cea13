"""Post-training quantization: recipes, passes from graph to graph, and the report on what they did."""
