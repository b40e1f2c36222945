# Gives Usher's service account its rights in Consul. It can run any number of times.
description="Written by the Helm chart of Usher"

if consul acl policy read -name "$NAME" >/dev/null 2>&1; then
  consul acl policy update -name "$NAME" -description "$description" -rules "$RULES"
else
  consul acl policy create -name "$NAME" -description "$description" -rules "$RULES"
fi

if ! consul acl role read -name "$NAME" >/dev/null 2>&1; then
  consul acl role create -name "$NAME" -description "$description" -policy-name "$NAME"
fi

# Binding rules have no names, so the one that leads to Usher's role is looked up. It is below the line with its id.
rules=$(consul acl binding-rule list -method "$AUTH_METHOD")
rule=$(echo "$rules" | while read -r key value; do
  case $key in
  *-*-*-*-*:) id=${key%:} ;;
  BindName:) if [ "$value" = "$NAME" ]; then echo "$id"; break; fi ;;
  esac
done)
if [ -n "$rule" ]; then
  consul acl binding-rule update -id "$rule" -bind-type role -bind-name "$NAME" -selector "$SELECTOR" \
    -description "$description"
else
  consul acl binding-rule create -method "$AUTH_METHOD" -bind-type role -bind-name "$NAME" -selector "$SELECTOR" \
    -description "$description"
fi
