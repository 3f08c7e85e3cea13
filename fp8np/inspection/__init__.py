"""Looking inside a converted model: what each layer's formats cost on data, what would help, and a page that shows it."""
