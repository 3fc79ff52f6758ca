"""`fsdino evaluate` and `fsdino compare`: any method, any data set, all folds; two results, episode by episode."""
