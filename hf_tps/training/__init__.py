"""What the training and evaluation scripts share; nothing that a saved model reaches."""
