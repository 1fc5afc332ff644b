"""One file per kernel family: schema, fake, autograd and the public functions."""
