package main

import "errors"

func fold(source, version, date string) error { return errors.New("not yet") }
