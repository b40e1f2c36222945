package xds

import (
	"context"

	logsv1 "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// ReportMethod is the gRPC method with which Envoys send log records about their listeners: that of OpenTelemetry.
const ReportMethod = logsv1.LogsService_Export_FullMethodName

// Reports receives what Envoys report about their listeners. The methods must not block.
type Reports interface {
	// Authenticate returns how to receive the message of a call with this metadata, and the secret in the metadata that
	// proves who sends it. Its errors, and those of receive, are gRPC statuses. The server reads no message before.
	Authenticate(md metadata.MD) (receive func(message []byte) error, proof string, err error)
}

// reportService is OpenTelemetry's service for log records, for messages that stay encoded.
var reportService = grpc.ServiceDesc{
	ServiceName: logsv1.LogsService_ServiceDesc.ServiceName,
	HandlerType: (*any)(nil),
	Methods: []grpc.MethodDesc{{
		MethodName: "Export",
		Handler: func(server any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			return server.(*Server).receiveReport(ctx, decode)
		},
	}},
}

// receiveReport handles one report. Its connection counts as authorized meanwhile.
func (s *Server) receiveReport(ctx context.Context, decode func(any) error) (any, error) {
	_, conn, _ := callerOf(ctx) // a report needs no credential
	md, _ := metadata.FromIncomingContext(ctx)
	receive, proof, err := s.options.Reports.Authenticate(md)
	if err != nil {
		s.admission.reportRefusal(conn, Credential{}, "a report: "+status.Convert(err).Message(), false)
		return nil, err
	}
	admitted, err := s.admission.openReport(conn, proof)
	if err != nil {
		return nil, err
	}
	defer admitted.close()
	admitted.markAuthorized(nil)
	var request rawRequest
	if err := decode(&request); err != nil {
		return nil, err
	}
	defer conn.releaseRequest(request)
	return message(nil), recoverPanic(s.options.Logger, func() error { return receive(request) })
}
