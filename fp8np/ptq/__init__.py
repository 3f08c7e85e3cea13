"""Post-training quantization: recipes, passes from graph to graph, and the report on what they did.

`recipe` says what is wanted, `assign` decides for each node, `fold` and `insert` rewrite the graph, `report` compares, and
`workflow` puts them together.
"""
