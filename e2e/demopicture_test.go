//go:build e2e

package e2e

import (
	"flag"
	"fmt"
	"html"
	"os"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/usherproxy/usher/internal/testing/testprocess"
)

var updatePicture = flag.Bool("update-picture", false, "TestPictureOfTheDemo writes its file")

// TestPictureOfTheDemo holds the picture in the README to what TestDemo sees.
func TestPictureOfTheDemo(t *testing.T) {
	t.Parallel()
	const file = "../docs/images/demo.svg"
	output := strings.NewReplacer(":PORT --", ":8080 --", ":PORT", ":…", "N ms", "… ms").Replace(demoOutput)
	picture := terminalPicture("$ make demo\n" + output)
	if *updatePicture {
		if err := os.WriteFile(file, []byte(picture), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(testprocess.ReadFile(t, file), picture); diff != "" {
		t.Errorf("after a change: make pictures (-have +want):\n%s", diff)
	}
}

// The parts of a terminal's picture, in pixels.
const (
	columnWidth = 8.43 // of a monospaced font of 14 pixels
	lineHeight  = 20
	margin      = 20
	titleHeight = 34
)

// terminalStyle is for light and for dark pages: the terminal is dark on both.
const terminalStyle = `<style>
text { font: 14px ui-monospace, "SF Mono", "Cascadia Mono", Menlo, "DejaVu Sans Mono", monospace; fill: #d5dbe3; white-space: pre }
.command { fill: #fff; font-weight: 600 } .bad { fill: #ff9d92 } .good { fill: #74d6a0 } .step { fill: #78b6ff }
</style>
`

// terminalPicture draws what a terminal shows, as SVG.
func terminalPicture(screen string) string {
	lines := strings.Split(strings.TrimSuffix(screen, "\n"), "\n")
	columns := 0
	for _, line := range lines {
		columns = max(columns, utf8.RuneCountInString(line))
	}
	width := int(float64(columns)*columnWidth) + 2*margin
	height := titleHeight + len(lines)*lineHeight + margin
	var svg strings.Builder
	fmt.Fprintf(&svg, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d">`+"\n", width, height, width, height)
	svg.WriteString(terminalStyle)
	fmt.Fprintf(&svg, `<rect x=".5" y=".5" width="%d" height="%d" rx="9" fill="#14181e" stroke="#3d444d"/>`+"\n", width-1, height-1)
	for i, color := range []string{"#ff5f57", "#febc2e", "#28c840"} {
		fmt.Fprintf(&svg, `<circle cx="%d" cy="17" r="5.5" fill="%s"/>`+"\n", margin+i*20, color)
	}
	for i, line := range lines {
		if line != "" {
			fmt.Fprintf(&svg, `<text x="%d" y="%d"%s>%s</text>`+"\n", margin, titleHeight+(i+1)*lineHeight-6, lineClass(line), html.EscapeString(line))
		}
	}
	return svg.String() + "</svg>\n"
}

// lineClass is the class attribute of a line, with the space before it.
func lineClass(line string) string {
	switch {
	case strings.HasPrefix(line, "$ "):
		return ` class="command"`
	case strings.Contains(line, "400") || strings.Contains(line, "did not reach it"):
		return ` class="bad"`
	case strings.Contains(line, "(the client)") || strings.Contains(line, "x-forwarded-for: "):
		return ` class="good"`
	case line[0] >= '1' && line[0] <= '9':
		return ` class="step"`
	default:
		return ""
	}
}
