"""The verbs of `import fewstep`: what people ask for, each a few lines over the job of the same name."""
