-- after books, entry, claim

withdraw()
return tell({}, true)
