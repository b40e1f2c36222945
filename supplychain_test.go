package usher_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestDebianPackagesAreChecked runs tools/install with packages of several versions.
func TestDebianPackagesAreChecked(t *testing.T) {
	for _, c := range []struct{ what, installed, pin, want string }{
		{"the release", "2.6.12-1+deb12u4", "2.6.12-*", ""},
		{"another release", "2.8.3-1", "2.6.12-*", "haproxy 2.8.3-1 is installed, and tools/debian/packages.txt has 2.6.12-*"},
		{"not from Debian", "", "2.6.12-*", "haproxy is not installed as a package, so its version (2.6.12-*) is not checked"},
		{"new enough", "2.6.12-1", ">=2.6", ""},
		{"too old", "2.6.12-1", ">=2.7", "haproxy 2.6.12-1 is installed, and tools/debian/packages.txt has >=2.7"},
	} {
		t.Run(c.what, func(t *testing.T) {
			out := installDebian(t, c.installed, "sh haproxy "+c.pin)
			if c.want == "" && out != "" || !strings.Contains(out, c.want) {
				t.Errorf("got %q, want %q", out, c.want)
			}
		})
	}
}

// TestAMissingDebianPackageIsInstalledInItsVersion runs tools/install without the command of a package.
func TestAMissingDebianPackageIsInstalledInItsVersion(t *testing.T) {
	out := installDebian(t, "2.6.12-1", "/missing/command haproxy 2.6.12-*")
	if !strings.Contains(out, "haproxy=2.6.12-*") {
		t.Errorf("got %q, want the version for apt-get", out)
	}
}

// installDebian runs `tools/install debian` with one package, of which a version is installed or none, and returns what it
// prints.
func installDebian(t *testing.T, installed, line string) string {
	t.Helper()
	dir := t.TempDir()
	script, err := os.ReadFile("tools/install")
	if err != nil {
		t.Fatal(err)
	}
	query := "#!/bin/sh\nexit 1\n"
	if installed != "" {
		query = "#!/bin/sh\necho 'installed " + installed + "'\n"
	}
	for name, content := range map[string]string{
		"tools/install": string(script), "tools/debian/packages.txt": "# a comment\n" + line + "\n",
		"bin/dpkg-query": query, "bin/apt-get": "#!/bin/sh\n",
		"bin/dpkg": "#!/bin/sh\n[ \"$(printf '%s\\n' \"$4\" \"$2\" | sort -V | head -n 1)\" = \"$4\" ]\n",
	} {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.CommandContext(t.Context(), filepath.Join(dir, "tools/install"), "debian")
	cmd.Env = append(os.Environ(), "PATH="+filepath.Join(dir, "bin")+":"+os.Getenv("PATH"))
	out, _ := cmd.CombinedOutput() // what it prints says how it ended
	return string(out)
}

// TestAnUnreachableVulnerabilityDatabaseIsReported looks for vulnerabilities without a database, and with one.
func TestAnUnreachableVulnerabilityDatabaseIsReported(t *testing.T) {
	dir := t.TempDir()
	scanner := filepath.Join(dir, "govulncheck")
	if err := os.WriteFile(scanner, []byte("#!/bin/sh\necho found \"$@\"\nexit 3\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	run := func() (string, int) {
		cmd := exec.CommandContext(t.Context(), "tools/vulncheck/run", scanner)
		cmd.Env = append(os.Environ(), "GOVULNDB=file://"+dir)
		out, _ := cmd.CombinedOutput()
		return string(out), cmd.ProcessState.ExitCode()
	}
	if out, code := run(); code != 0 || !strings.Contains(out, "NOT CHECKED for known vulnerabilities: file://"+dir+" does not answer") {
		t.Errorf("without a database: exit code %d, %q; want 0 and a warning", code, out)
	}
	if err := os.MkdirAll(filepath.Join(dir, "index"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "index/db.json"), []byte("{}"), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, code := run(); code != 3 || !strings.Contains(out, "found -db file://"+dir) {
		t.Errorf("with a vulnerability: exit code %d, %q; want that of govulncheck", code, out)
	}
}

// TestEveryDownloadIsPinned finds what is fetched without a hash that this repository has.
func TestEveryDownloadIsPinned(t *testing.T) {
	t.Run("modules", func(t *testing.T) {
		for _, module := range glob(t, "tools/*/go.mod", "e2e/kubernetes/go.mod") {
			readText(t, filepath.Join(filepath.Dir(module), "go.sum"))
		}
	})
	t.Run("wheels", everyWheelHasAHash)
	t.Run("npm", everyPackageOfNpmHasAHash)
	t.Run("scripts", noScriptFetchesByName)
	t.Run("workflows", everyActionAndImageIsFixed)
}

func everyWheelHasAHash(t *testing.T) {
	for _, pins := range glob(t, "tools/*/requirements.txt") {
		for requirement := range strings.SplitSeq(strings.ReplaceAll(readText(t, pins), "\\\n", " "), "\n") {
			if requirement != "" && !strings.HasPrefix(requirement, "#") && !strings.Contains(requirement, "--hash=sha256:") {
				t.Errorf("%s: %s has no hash", pins, requirement)
			}
		}
	}
}

func everyPackageOfNpmHasAHash(t *testing.T) {
	for _, lock := range glob(t, "tools/*/package-lock.json") {
		var pins struct {
			Packages map[string]struct{ Integrity string }
		}
		if err := json.Unmarshal([]byte(readText(t, lock)), &pins); err != nil {
			t.Fatalf("%s: %v", lock, err)
		}
		for name, pin := range pins.Packages {
			if name != "" && pin.Integrity == "" {
				t.Errorf("%s: %s has no hash", lock, name)
			}
		}
	}
}

var (
	// unpinned is what fetches by a name or an address alone.
	unpinned = regexp.MustCompile(`\b(wget|git clone|npm (install|i)|npx|pip3? install|go (install|run|get) \S+@|docker (pull|run)|debootstrap|mmdebstrap)\b|curl [^|]*https?://`)
	// signed are the lines among them that fetch Debian's packages: apt checks the signature of the archive, as it does for
	// the packages of tools/debian/packages.txt.
	signed = []string{"debian mmdebstrap", "mmdebstrap --quiet --variant=apt"}

	action = regexp.MustCompile(`uses:\s+(\S+)`)
	commit = regexp.MustCompile(`@[0-9a-f]{40}$`)
	image  = regexp.MustCompile(`^\s*(?:- )?(?:container|image):\s+(\S+)`)
	digest = regexp.MustCompile(`@sha256:[0-9a-f]{64}$`)
	// namedImages have no digest: no test has run on one, because the developers' machines reach no registry of images. The jobs
	// install signed packages into them, and build with what go.sum and the other pins fix.
	namedImages = []string{"debian:12"}
)

func noScriptFetchesByName(t *testing.T) {
	for _, script := range glob(t, "Makefile", ".ci/run", "tools/*", "tools/*/*", ".github/workflows/*.yml") {
		if info, err := os.Stat(script); err != nil {
			t.Fatal(err)
		} else if info.IsDir() || info.Mode()&0o100 == 0 && filepath.Ext(script) != ".yml" && script != "Makefile" {
			continue
		}
		for line := range strings.Lines(readText(t, script)) {
			line = strings.TrimSpace(line)
			isSigned := slices.ContainsFunc(signed, func(beginning string) bool { return strings.HasPrefix(line, beginning) })
			if unpinned.MatchString(line) && !isSigned && !strings.HasPrefix(line, "#") {
				t.Errorf("%s: %q fetches what no hash in this repository fixes", script, line)
			}
		}
	}
}

func everyActionAndImageIsFixed(t *testing.T) {
	for _, workflow := range glob(t, ".github/workflows/*.yml") {
		for line := range strings.Lines(readText(t, workflow)) {
			line = strings.TrimRight(line, "\n")
			if use := action.FindStringSubmatch(line); use != nil && !commit.MatchString(use[1]) && !strings.HasPrefix(use[1], "./") {
				t.Errorf("%s: %q: name the action's commit", workflow, line)
			}
			if use := image.FindStringSubmatch(line); use != nil && !digest.MatchString(use[1]) && !slices.Contains(namedImages, use[1]) {
				t.Errorf("%s: %q: name the image's digest", workflow, line)
			}
		}
	}
}

func glob(t *testing.T, patterns ...string) []string {
	t.Helper()
	var files []string
	for _, pattern := range patterns {
		found, err := filepath.Glob(pattern)
		if err != nil || len(found) == 0 {
			t.Fatalf("no file is called %s (%v)", pattern, err)
		}
		files = append(files, found...)
	}
	return files
}
