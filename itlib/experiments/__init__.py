"""Problems, parameters and records with types, and one module for each experiment."""
