"""The methods: one file for each, one paper for each, its docstring its card."""
