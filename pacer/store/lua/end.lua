forget(asked.run)
return '{}'
