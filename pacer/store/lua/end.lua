-- after books, whole

forget(name)
return ''
