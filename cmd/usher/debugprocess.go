package main

import (
	"errors"
	"io/fs"
	"net/http"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/usherproxy/usher/internal/configfile"
	"github.com/usherproxy/usher/internal/redaction"
)

// flagValue is the value of a flag.
type flagValue struct {
	Value string `json:"value"`
	IsSet bool   `json:"is_set"` // false: Value is the default
}

// flagValues returns the values of all flags, by their names.
func flagValues(f *pflag.FlagSet) map[string]flagValue {
	all := map[string]flagValue{}
	f.VisitAll(func(f *pflag.Flag) { all[f.Name] = flagValue{f.Value.String(), f.Changed} })
	return all
}

// harmlessVariables are those whose values are no secrets. Of all others, only the names are shown.
var harmlessVariables = []string{
	"CONSUL_HTTP_ADDR", "CONSUL_HTTP_TOKEN_FILE", "CONSUL_HTTP_SSL", "CONSUL_HTTP_SSL_VERIFY", "CONSUL_TLS_SERVER_NAME",
	"CONSUL_CACERT", "CONSUL_CAPATH", "CONSUL_CLIENT_CERT", "CONSUL_CLIENT_KEY", // paths
	"CONSUL_GRPC_ADDR", "CONSUL_GRPC_CACERT", "CONSUL_GRPC_CAPATH", "CONSUL_NAMESPACE", "CONSUL_PARTITION",
	"GODEBUG", "GOGC", "GOMAXPROCS", "GOMEMLIMIT",
}

// environment returns the variables that Usher, Consul's client and Go's runtime read, by their names.
func environment(environ []string) map[string]string {
	all := map[string]string{}
	for _, text := range environ {
		name, value, _ := strings.Cut(text, "=")
		harmless := slices.Contains(harmlessVariables, name)
		if !harmless && !strings.HasPrefix(name, "CONSUL_") && !strings.HasPrefix(name, "USHER_") {
			continue
		}
		if !harmless && value != "" {
			value = redaction.Redacted
		}
		all[name] = value
	}
	return all
}

// thisProcess is what is known of this process. The values of flags are no secrets, whatever the flags' names.
func thisProcess(flags map[string]flagValue) lazyObject {
	return func(yield func(string, any) bool) {
		_ = yield("build", thisBuild()) &&
			yield("time", time.Now().UTC()) && // on its clock
			yield("cpus", runtime.GOMAXPROCS(0)) && // that Go uses
			yield("max_files", maxFiles()) &&
			(flags == nil || yield("flags", sortedFields(flags, func(name string) string { return name }))) &&
			yield("environment", environment(os.Environ()))
	}
}

// process describes this process.
func (d debugHandlers) process(*http.Request) (any, *pageError) {
	return thisProcess(d.options.flags), nil
}

// config shows the files with configuration.
func (d debugHandlers) config(*http.Request) (any, *pageError) {
	return configReport(d.options.configFile, d.options.configDir), nil
}

// fileReport is a file in a list.
type fileReport struct {
	Name     string    `json:"name"`
	Size     int64     `json:"size"`
	Mode     string    `json:"mode"`
	Modified time.Time `json:"modified"`
}

// configReport shows the content of the config file, and which files are in the directory. An empty path is left out.
func configReport(file, dir string) lazyObject {
	return func(yield func(string, any) bool) {
		if file != "" {
			content, err := configfile.Tree(file)
			if err != nil { // whose text may quote a part of the file
				content = errors.New("the file cannot be read, so Usher cannot leave out secrets and shows nothing of it; usher validate says what is wrong")
			}
			if !yield("config", file) || !yield("content", content) {
				return
			}
		}
		if dir != "" && yield("config_dir", dir) {
			yield("files", listing(dir))
		}
	}
}

// maxListed is how many files of a directory are listed.
const maxListed = 10000

// listing lists the files below a directory.
func listing(dir string) any {
	files := []fileReport{}
	err := fs.WalkDir(os.DirFS(dir), ".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if info, err := entry.Info(); err == nil && path != "." { // otherwise it is gone
			files = append(files, fileReport{path, info.Size(), info.Mode().String(), info.ModTime().UTC()})
		}
		if len(files) >= maxListed {
			return fs.SkipAll
		}
		return nil
	})
	if err != nil {
		return err
	}
	return files
}
