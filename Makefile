# The commands of this repository; `make help` lists them.
#
# Real parts (Consul, Envoy, the linter) go to .tools/, fixed by the pins under
# tools/. HAProxy, nginx, Apache and other system parts come from Debian
# (tools/debian/packages.txt).

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
SHELL := /bin/bash

CONSUL_NEW := .tools/consul-1.22.7/pin
CONSUL := $(CONSUL_NEW) .tools/consul-1.20.6/pin .tools/consul-1.15.1/pin
ENVOY  := .tools/envoy-1.40.0/pin
ENVOYS := $(ENVOY) .tools/envoy-1.39.3/pin .tools/envoy-1.38.3/pin .tools/envoy-1.37.0/pin .tools/envoy-1.36.2/pin
KUBERNETES := .tools/kubernetes-1.34.0/pin
KUBECTL := .tools/kubectl-1.34.0/pin
LINT   := .tools/golangci-lint/pin
BENCHSTAT := .tools/benchstat/pin
LICENSES := .tools/licenses/pin
VULNCHECK := .tools/vulncheck/pin
# The Go modules of this repository, whose downloads make check compares with their go.sum.
MODULES := . $(patsubst %/go.mod,%,$(wildcard tools/*/go.mod)) e2e/kubernetes
NOMAD  := .tools/nomad-1.6.3/pin
HELM   := .tools/helm-3.22.0/pin
AXE    := .tools/axe-core-4.14.1/pin
D2     := .tools/d2-0.7.2/pin
HUGO   := .tools/hugo-0.165.0/pin
MINISEARCH := .tools/minisearch-7.2.0/pin
MACHINE := .tools/debian-12/pin

E2E_TIMEOUT ?= 30m
E2E_FLAGS   ?= -v
# A story waits most of the time and takes up to half a GiB; the one with an Envoy for each of fifty Services up to 5 GiB.
E2E_PARALLEL ?= 4
# So many packages are tested at once where most of their tests wait.
PACKAGES_AT_ONCE ?= 3
# One in Kubernetes keeps a processor busy. Those that count lost requests run alone.
KUBERNETES_PARALLEL ?= 2
# The faults of a run of chaos; without a seed, it chooses one and prints it.
CHAOS_TIME  ?= 2m
CHAOS_SEED  ?=
CHAOS_ACTIONS ?=
export CHAOS_TIME CHAOS_SEED CHAOS_ACTIONS
FUZZ_TIME   ?= 60s
# The directory with Consul's charts and the sources of their programs.
CONSUL_K8S  ?= $(wildcard ../shared/consul-k8s)

# The lab, the modes of PROXY protocol under load, Kubernetes, and the written
# cases of conformance.
SMOKE := ^(TestConsulsOwnGateway|TestLab|TestPROXYProtocolIsSwitchedOnAndOffUnderLoad|TestLabInKubernetes|TestSameResourcesAsConsul)$$

.PHONY: help
help: ## List the commands
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "%-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: ## Build bin/usher (VERSION=v1.2.3 where there is no git)
	CGO_ENABLED=0 go build -trimpath $(if $(VERSION),-ldflags '-X main.version=$(VERSION)') -o bin/usher ./cmd/usher

.PHONY: image
image: ## Build the container image, its archive and SBOMs into dist/ (IMAGE=NAME:TAG VERSION=v1.2.3)
	go -C tools/image run . build -source ../.. -out ../../dist -image '$(IMAGE)' -version '$(VERSION)'

.PHONY: push
push: ## Build the image and push it with its SBOMs (IMAGE=REGISTRY/NAME:TAG)
	@[[ -n '$(IMAGE)' ]] || { echo 'no name to push to; use make push IMAGE=REGISTRY/NAME:TAG' >&2; exit 1; }
	$(MAKE) image
	go -C tools/image run . push -out ../../dist -image '$(IMAGE)'

.PHONY: release
release: ## Build archives, packages, image, chart, SBOMs and checksums into dist/ (VERSION=v1.2.3; RELEASE_FLAGS="-platforms linux/amd64 -image=false" for less)
	go -C tools/release run . build -source ../.. -out ../../dist -version '$(VERSION)' $(RELEASE_FLAGS)

.PHONY: changelog
changelog: ## Fold changes/ into a section of CHANGELOG.md (VERSION=v1.2.3)
	go -C tools/release run . changelog -source ../.. -version '$(VERSION)'

.PHONY: release-notes
release-notes: ## Print the section of CHANGELOG.md about a version (VERSION=v1.2.3)
	@go -C tools/release run . notes -source ../.. -version '$(VERSION)'

.PHONY: test
test: race e2e image-test monitoring-test release-test ## Run every test, with real Consul, Envoy, HAProxy, nginx, Apache, Kubernetes and Chromium

.PHONY: unit
unit: ## Run the tests that need neither network nor real parts
	go test ./...

.PHONY: race
race: debian ## Run the same tests under the race detector
	go test -race -p $(PACKAGES_AT_ONCE) ./...
	go -C tools/release test -run 'Changelog|Fragments|Mistakes' ./...

.PHONY: image-test
image-test: debian ## Build the image twice and compare it, run it, import it into containerd, and push it
	go -C tools/image test -count=1 ./...

.PHONY: release-test
release-test: debian $(HELM) $(CONSUL_NEW) ## Build packages twice and compare them; install, start, upgrade and remove them in a copy of this system
	go -C tools/release test -count=1 -timeout 20m ./...

.PHONY: monitoring-test
monitoring-test: ## Test the alerts and the dashboard with the libraries of Prometheus and Grafana
	go -C tools/monitoring test -count=1 ./...

.PHONY: e2e
e2e: stories conformance-and-chaos real-parts ## Run every test on real parts (E2E_FLAGS="-v -run NAME")

.PHONY: stories
stories: tools build ## Run the stories (E2E_FLAGS="-v -run NAME")
	go test -tags e2e -count=1 -parallel $(E2E_PARALLEL) -timeout $(E2E_TIMEOUT) $(E2E_FLAGS) ./e2e

.PHONY: conformance-and-chaos
conformance-and-chaos: tools build ## Compare with a real Consul, and make the faults of one seed
	CHAOS_SEED=$${CHAOS_SEED:-21} go test -tags e2e -count=1 -timeout $(E2E_TIMEOUT) $(filter-out -v,$(E2E_FLAGS)) ./e2e/bench ./e2e/chaos ./e2e/conformance

.PHONY: real-parts
real-parts: tools build ## Run the tests of packages that need real parts
	go test -tags e2e -count=1 -p $(PACKAGES_AT_ONCE) -timeout $(E2E_TIMEOUT) $(filter-out -v,$(E2E_FLAGS)) ./internal/bootstrap ./internal/testing/pages ./listeners ./internal/loadbalancer ./internal/reportkey ./internal/consulchart ./internal/statuspage ./cmd/usher ./charts ./tools/site

.PHONY: chaos
chaos: debian $(CONSUL) $(ENVOYS) build ## Make random faults under load (CHAOS_TIME=10m CHAOS_SEED=123 CHAOS_ACTIONS=kill-usher,rotate-ca)
	go test -tags e2e -count=1 -v -timeout 0 -run '^TestChaos$$' ./e2e/chaos

.PHONY: kubernetes
kubernetes: tools build $(HELM) $(KUBECTL) ## Run the stories on the real Consul chart (CONSUL_K8S=DIR, E2E_FLAGS="-v -run NAME")
	@[[ -d "$(CONSUL_K8S)" ]] || { echo "CONSUL_K8S=DIR is missing: DIR has charts, control-plane, consul-dataplane and version of consul-k8s" >&2; exit 1; }
	tools/consul-k8s "$(CONSUL_K8S)"
	cd e2e/kubernetes && USHER_TOOLS="$(CURDIR)/.tools" USHER_BIN="$(CURDIR)/bin/usher" CONSUL_K8S="$(abspath $(CONSUL_K8S))" \
		go test -tags e2e,kubernetes -count=1 -parallel $(KUBERNETES_PARALLEL) -timeout $(E2E_TIMEOUT) $(E2E_FLAGS) ./...
	CONSUL_K8S="$(abspath $(CONSUL_K8S))" go test -tags e2e,kubernetes -count=1 -run TestConsulChartAgrees ./charts
	CONSUL_K8S="$(abspath $(CONSUL_K8S))" go test -tags kubernetes -count=1 ./internal/consulchart

.PHONY: smoke
smoke: tools build ## Run the most telling tests on real parts, in under five minutes
	go test -tags e2e -count=1 -parallel $(E2E_PARALLEL) -timeout 10m -run '$(SMOKE)' ./e2e ./e2e/conformance

.PHONY: conformance
conformance: tools build ## Compare with a real Consul, a line a case (E2E_FLAGS="-run /NAME -seed N")
	@set -o pipefail; go test -tags e2e -count=1 -v ./e2e/conformance $(E2E_FLAGS) | grep -v '^=== '

.PHONY: conformance-long
conformance-long: ## The same with 5000 other random cases
	$(MAKE) conformance E2E_FLAGS="-timeout 2h -seed 0 -random 5000 $(E2E_FLAGS)"

.PHONY: bench
bench: $(CONSUL) $(ENVOY) build ## Measure beside Consul's own xDS (BENCH_FLAGS="-quick" for a minute, -h lists all)
	go run -tags e2e ./e2e/bench $(BENCH_FLAGS)

.PHONY: benchmarks
benchmarks: $(BENCHSTAT) ## Run the benchmarks beside the code, and compare them with the baseline
	tools/benchmarks compare

.PHONY: benchmarks-baseline
benchmarks-baseline: ## Make this machine and this code the baseline
	tools/benchmarks renew

.PHONY: logcost
logcost: tools build ## Measure what each sink of access logs costs (the table in docs/access-logs.md)
	@set -o pipefail; go test -tags e2e,cost -count=1 -timeout 9m -v -run "^TestCostOf" ./e2e | grep -v '^==='

.PHONY: measure
measure: ## Count files, lines and functions by package
	@go run ./tools/measure

.PHONY: fuzz
fuzz: ## Give every decoder random input, FUZZ_TIME (60s) for each
	tools/fuzz $(FUZZ_TIME)

.PHONY: demo
demo: build $(ENVOY) ## Run the lab in one process, on a real Envoy
	bin/usher demo --envoy $(dir $(ENVOY))envoy

.PHONY: lint
lint: $(LINT) ## Run the linters, and vet for linux/arm64 and darwin/arm64
	.tools/golangci-lint/golangci-lint run ./...
	cd tools/image && ../../.tools/golangci-lint/golangci-lint run ./...
	cd tools/monitoring && ../../.tools/golangci-lint/golangci-lint run ./...
	cd tools/release && ../../.tools/golangci-lint/golangci-lint run ./...
	cd e2e/kubernetes && ../../.tools/golangci-lint/golangci-lint run --build-tags e2e,kubernetes ./...
	CGO_ENABLED=0 GOOS=linux GOARCH=arm64 go vet -trimpath ./cmd/usher
	CGO_ENABLED=0 GOOS=darwin GOARCH=arm64 go vet -trimpath ./cmd/usher

.PHONY: fmt
fmt: $(LINT) ## Format the code
	.tools/golangci-lint/golangci-lint fmt ./...

.PHONY: generate
generate: ## Rewrite generated files
	go generate ./...

.PHONY: licenses
licenses: $(LICENSES) ## Check the licenses of what is in bin/usher, and list them in docs/licenses.md
	tools/licenses/list .tools/licenses/go-licenses

.PHONY: site
site: $(HUGO) $(MINISEARCH) ## Build the site of docs/ into dist/site
	go run ./tools/site -out dist/site

.PHONY: site-test
site-test: debian $(HUGO) $(MINISEARCH) $(AXE) ## Build the site twice, check every link, and look at it in a browser
	go test -tags e2e -count=1 ./tools/site

.PHONY: diagrams
diagrams: $(D2) ## Draw docs/diagrams/*.d2 as SVG
	@for diagram in $(filter-out %/style.d2,$(wildcard docs/diagrams/*.d2)); do \
		$(dir $(D2))d2 --omit-version --scale 1 "$$diagram" && chmod 644 "$${diagram%.d2}.svg" || exit; \
	done

.PHONY: pictures
pictures: debian $(AXE) ## Make the pictures of the demo and of the status page, docs/images
	go test -tags e2e -count=1 -run '^TestPictureOfTheDemo$$' ./e2e -update-picture
	dir=$$(mktemp -d) && USHER_SCREENSHOTS=$$dir go test -tags e2e -count=1 -run '^TestPageInABrowser$$/^accessible$$' ./internal/statuspage && \
		mv $$dir/light.png docs/images/status-page.png && rm -r $$dir

.PHONY: sbom
sbom: build ## Write the SBOM of bin/usher to dist/usher.cdx.json
	@mkdir -p dist
	go -C tools/image run . sbom ../../bin/usher > dist/usher.cdx.json

.PHONY: vulncheck
vulncheck: build $(VULNCHECK) ## Look for known vulnerabilities in bin/usher (GOVULNDB=file:///DIR for a copy of the database)
	@tools/vulncheck/run .tools/vulncheck/govulncheck

.PHONY: verify
verify: ## Compare the downloaded Go modules with their go.sum
	@for module in $(MODULES); do echo "go mod verify: $$module" && (cd $$module && GONOSUMDB='github.com/hashicorp/*' go mod verify) || exit; done

.PHONY: check
check: build lint race verify vulncheck ## Build, vet, lint, race, verify modules, and demand that generated files are committed
	go vet ./...
	go vet -tags e2e ./...
	go -C tools/image vet ./...
	go -C tools/monitoring vet ./...
	go -C tools/release vet ./...
	cd e2e/kubernetes && go vet -tags e2e,kubernetes ./...
	tools/clean-after make generate licenses diagrams

.PHONY: tools
tools: debian $(CONSUL) $(ENVOYS) $(KUBERNETES) $(NOMAD) $(HELM) $(AXE) $(HUGO) $(MINISEARCH) $(MACHINE) ## Get the real parts into .tools/

.PHONY: debian
debian:
	@tools/install debian

$(CONSUL_NEW): tools/consul-1.22/go.mod
.tools/consul-1.20.6/pin: tools/consul-1.20/go.mod
.tools/consul-1.15.1/pin: tools/consul-1.15/go.mod
$(KUBERNETES): tools/kubernetes-1.34/go.mod
$(KUBECTL): tools/kubectl-1.34/go.mod
$(NOMAD): tools/nomad-1.6/go.mod
$(HELM): tools/helm/go.mod
$(AXE): tools/axe-core/package-lock.json
$(MACHINE): tools/debian-12/packages.txt debian # tools/install sees each time if it is too old
$(ENVOY): tools/envoy-1.40/requirements.txt
.tools/envoy-1.39.3/pin: tools/envoy-1.39/requirements.txt
.tools/envoy-1.38.3/pin: tools/envoy-1.38/requirements.txt
.tools/envoy-1.37.0/pin: tools/envoy-1.37/requirements.txt
.tools/envoy-1.36.2/pin: tools/envoy-1.36/requirements.txt
$(LINT): tools/lint/go.mod
$(BENCHSTAT): tools/benchstat/go.mod
$(LICENSES): tools/licenses/go.mod
$(VULNCHECK): tools/vulncheck/go.mod
$(D2): tools/d2/go.mod
$(HUGO): tools/hugo/go.mod
$(MINISEARCH): tools/minisearch/package-lock.json

.tools/%/pin:
	@tools/install $* $<

.PHONY: clean
clean: ## Remove what was built, except the parts in .tools/
	rm -rf bin dist
