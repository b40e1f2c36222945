// Package settings is the language of Usher's own settings: the key "usher" of
// Consul's opaque configs and of the file given with --config.
//
//	raw value ──DecodeSettings──> Settings ──Layer──> Resolve(port, layers…) ──> Policy
//
// One table (schema) holds every setting: its key, the values it accepts, its
// default and its documentation. Decoding, merging, messages and docs/settings.md
// follow from it.
package settings
