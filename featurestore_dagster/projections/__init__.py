"""A declaration -> what each tool needs of it: tables, Feast objects, schemas, documents. Pure; executing them does not belong here."""
