#!/usr/bin/env bash
# Tries a running pody against a description of the /v2 API, with schemathesis (from PyPI, on PATH).
#
#   tests/v2_conformance.sh SPEC.json http://127.0.0.1:8799 TOKEN
#
# Answers must have the shapes of the description, nothing may end in a 5xx, and what breaks the description must be
# refused. Which statuses an error has is left out: the description knows no 401, and few 404 and 409.
set -euo pipefail
spec=${1:?a description in JSON} url=${2:?the address of a server} token=${3:?a token of /user/tokens/create}
exec schemathesis run "$spec" --url "$url" --header "Authorization: Bearer $token" \
    --checks not_a_server_error,response_schema_conformance,content_type_conformance,response_headers_conformance,negative_data_rejection \
    --phases examples,coverage,fuzzing,stateful --max-examples "${EXAMPLES:-100}"
