package dataplane

import (
	"slices"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/usherproxy/usher/xds"
)

// isReport reports whether a discovery stream is none, but a report. consul-dataplane passes on discovery streams only, so
// Usher's bootstrap gives their method to reports; Envoy then adds a header with the report's own.
func (c *call) isReport() bool {
	md, _ := metadata.FromIncomingContext(c.ctx)
	return slices.Equal(md.Get("x-envoy-original-path"), []string{xds.ReportMethod})
}

// receiveReport handles what an Envoy reports about its listeners, which Consul would not understand.
//
// consul-dataplane takes the end of the caller's messages for the end of Envoy's connection, and an answer for the proof that
// it is there (its metric envoy_connected). So an answer comes after that end, also before the status of a report that is
// refused.
func (s *Server) receiveReport(c *call) error {
	receive, refusal := s.authenticateReport(c)
	message, err := c.only()
	if err != nil {
		return err
	}
	if refusal == nil {
		refusal = receive(message)
	}
	if err := c.in.SendMsg(frame{}); err != nil {
		return err
	}
	return refusal
}

// authenticateReport returns how to receive the report, if its sender may report. An error is a status.
func (s *Server) authenticateReport(c *call) (receive func([]byte) error, err error) {
	if s.options.Reports == nil {
		return nil, s.refuse(status.Error(codes.Unimplemented, "usher takes no reports; see --connection-reports"))
	}
	md, _ := metadata.FromIncomingContext(c.ctx)
	if receive, _, err = s.options.Reports.Authenticate(md); err != nil {
		return nil, s.refuse(err)
	}
	s.admission.markProven(c.conn)
	return receive, nil
}

// only returns the message of a call that has one. An error is a status.
func (c *call) only() (frame, error) {
	message, err := c.first()
	switch {
	case err != nil:
		return nil, err
	case message == nil:
		return nil, status.Error(codes.InvalidArgument, "the report has no message")
	}
	switch more, err := c.first(); {
	case err != nil:
		return nil, err
	case more != nil:
		return nil, status.Error(codes.InvalidArgument, "the report has more than one message")
	}
	return *message, nil
}
