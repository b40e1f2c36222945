// Package browser runs a headless Chromium for tests of pages.
package browser
